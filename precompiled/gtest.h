// SPDX-License-Identifier: Apache-2.0
// As standard.h, for tests.
#include "standard.h"

#include <gtest/gtest.h>
