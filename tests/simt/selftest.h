// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>

namespace va::simt {

// Runs a small kernel with the named mistake (or "none"); the emulator must report it by throwing.
void selftest(const std::string& mistake);

}  // namespace va::simt
