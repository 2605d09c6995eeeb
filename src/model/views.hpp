// Parts of parameters and of the encoder's factors, without copying; of matrices: memory.hpp.
#pragma once

#include "clt/backend/backend.hpp"

namespace clt {

inline ParamRows rows_of(const ParamRows& array, Index first, Index n) {
    return {rows_of(array.value, first, n), rows_of(array.moment1, first, n),
            rows_of(array.moment2, first, n), rows_of(array.rounded, first, n), array.not_finite};
}
inline EncoderOperand rows_of(const EncoderOperand& x, Index first, Index n) {
    return {rows_of(x.value, first, n), rows_of(x.rounded, first, n)};
}

inline EncoderOperand columns_of(const EncoderOperand& x, Index first, Index n) {
    return {columns_of(x.value, first, n), columns_of(x.rounded, first, n)};
}

}  // namespace clt
