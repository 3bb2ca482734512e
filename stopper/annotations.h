// SPDX-License-Identifier: Apache-2.0
// Clang's thread-safety annotations (-Wthread-safety); nothing under other compilers.
#pragma once

#if defined(__clang__)
#define STOPVISOR_ANNOTATE(x) __attribute__((x))
#else
#define STOPVISOR_ANNOTATE(x)
#endif

#define CAPABILITY(name) STOPVISOR_ANNOTATE(capability(name))
#define SCOPED_CAPABILITY STOPVISOR_ANNOTATE(scoped_lockable)
#define GUARDED_BY(lock) STOPVISOR_ANNOTATE(guarded_by(lock))
#define REQUIRES(...) STOPVISOR_ANNOTATE(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) STOPVISOR_ANNOTATE(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) STOPVISOR_ANNOTATE(acquire_capability(__VA_ARGS__))
#define RELEASE(...) STOPVISOR_ANNOTATE(release_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) STOPVISOR_ANNOTATE(try_acquire_capability(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS STOPVISOR_ANNOTATE(no_thread_safety_analysis)
