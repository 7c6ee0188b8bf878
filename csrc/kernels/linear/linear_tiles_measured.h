// SPDX-License-Identifier: Apache-2.0
// Written by `python -m bench.tune`; read by linear_tiles.h. Products for which a measured tile beat the
// rule.
#pragma once

namespace va::linear_gemm {

inline constexpr Measured kMeasured[] = {
    {},
};

}  // namespace va::linear_gemm
