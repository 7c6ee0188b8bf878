// SPDX-License-Identifier: Apache-2.0
// Which CPU instruction set (ISA) the kernels run with. The best one that both this build and this
// machine have is taken at load; the environment variable VISION_ACCEL_ISA or set_isa forces a lower one.
#pragma once
#include <string>
#include <vector>

namespace va {

// portable: SSE2 on x86-64, plain C++ elsewhere. neon is the only one on aarch64, which always has it.
enum class Isa { portable, neon, avx2, avx512 };

const char* name_of(Isa isa);
std::vector<std::string> available_isas();  // rising order
Isa active_isa();
void set_isa(const std::string& name);  // throws Error naming the available ones

}  // namespace va
