// SPDX-License-Identifier: Apache-2.0
// The headers of the C++ library that most files include, parsed once a target (cpp_pch in meson.build). A file
// still names each header it needs: clang-tidy and -Db_pch=false build without this one.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <expected>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <variant>
#include <vector>
