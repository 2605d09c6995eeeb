// This rank's part of a checkpoint's arrays, where training keeps them.
#pragma once

#include <string>
#include <vector>

#include "clt/io/hdf5.hpp"
#include "clt/model/params.hpp"
#include "clt/train/checkpoint.hpp"

namespace clt {

template <class T>
struct ArrayPart {
    std::string name;
    Span<T> values;  // [rows.size(), width]
    Shard rows;      // of the file's
    Index file_rows = 0;
    Index width = 0;
    ArrayRole role = ArrayRole::sharded;
};

inline H5Type file_type(const float*) {
    return H5Type::float32;
}
inline H5Type file_type(const Index*) {
    return H5Type::int64;
}

/// value/, and with moments moment1/ and moment2/, of every parameter array.
std::vector<ArrayPart<float>> parameter_parts(Params& params, bool moments);

/// silence/layer_l of silence [L, F_p].
template <class T>
std::vector<ArrayPart<T>> silence_parts(const Params& params, Span<T> silence) {
    std::vector<ArrayPart<T>> parts;
    const Shard own = params.features();
    CLT_CHECK(silence.size() == params.local_rows());
    for (Index layer = 0; layer < params.shape().layers; ++layer)
        parts.push_back({fmt::format("silence/layer_{}", layer),
                         silence.subspan(layer * own.size(), own.size()), own,
                         params.shape().features, 1, ArrayRole::sharded});
    return parts;
}

}  // namespace clt
