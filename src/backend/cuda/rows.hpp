// Weight rows and their update in one visit, with plain pointers (see rows.cu).
#pragma once

#include <cstdint>

#include "backend/cuda/runtime.hpp"
#include "clt/backend/adam.hpp"

namespace clt::cuda {

/// The rows of one layer: g[row] = sum over its entries of factor * source[token] + coefficient *
/// value[row], then one Adam step, or squares[1] += sum of g^2.
struct RowVisit {
    Index rows = 0;
    Index width = 0;
    const Index* row_start = nullptr;     // [rows + 1] into the arrays of entries
    const std::int32_t* token = nullptr;  // [entries]
    const float* factor = nullptr;        // [entries]
    float* dot = nullptr;                 // [entries] += <source[token], value[row]>; may be null
    const float* coefficient = nullptr;   // [rows]; may be null
    const float* source = nullptr;        // [tokens, width]
    Index source_stride = 0;
    float* value = nullptr;  // [rows, width]
    Index value_stride = 0;
    float* moment1 = nullptr;  // [rows, width]
    Index moment1_stride = 0;
    float* moment2 = nullptr;  // [rows, width]
    Index moment2_stride = 0;
    std::uint16_t* rounded = nullptr;  // [rows, width] bfloat16; may be null
    Index rounded_stride = 0;
    double* not_finite = nullptr;  // [1], see ParamRows; may be null
    bool update = false;           // by `adam`; else squares are summed and nothing else moves
    AdamStep adam;
    double* squares = nullptr;  // [1], where nothing is updated
};

/// row_squares: scratch of [rows], where nothing is updated.
void visit_rows(const RowVisit& visit, double* row_squares, StreamHandle stream);

}  // namespace clt::cuda
