// SPDX-License-Identifier: Apache-2.0
// As standard.h, for targets where most files read or write JSON.
#include "standard.h"

#include <nlohmann/json.hpp>
