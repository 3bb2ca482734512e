// SPDX-License-Identifier: Apache-2.0
// The memory functions a freestanding compiler may call. (GCC manual, "Standards": memcpy, memmove, memset, memcmp)
#include <stddef.h>
#include <stdint.h>

extern "C" {

void* memset(void* to, int value, size_t count) {
  void* at = to;
  asm volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(value) : "memory");
  return to;
}

void* memcpy(void* to, const void* from, size_t count) {
  void* at = to;
  asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
  return to;
}

void* memmove(void* to, const void* from, size_t count) {
  if (reinterpret_cast<uintptr_t>(to) <= reinterpret_cast<uintptr_t>(from))
    return memcpy(to, from, count);
  auto* target = static_cast<volatile unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  while (count-- != 0)
    target[count] = source[count];
  return to;
}

int memcmp(const void* left, const void* right, size_t count) {
  const auto* a = static_cast<const volatile unsigned char*>(left);
  const auto* b = static_cast<const volatile unsigned char*>(right);
  for (size_t i = 0; i < count; ++i) {
    if (a[i] != b[i])
      return a[i] < b[i] ? -1 : 1;
  }
  return 0;
}
}
