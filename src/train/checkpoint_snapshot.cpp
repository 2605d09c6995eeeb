// A checkpoint's arrays into host memory.
#include <algorithm>

#include "clt/train/checkpoint.hpp"
#include "train/checkpoint_format.hpp"
#include "train/checkpoint_parts.hpp"

namespace clt {
namespace {

// Replicas hold the same rows: each takes a part of them, so that all ranks share the work (and a
// device sends as little as can be).
template <class T>
Shard rows_to_write(const ArrayPart<T>& part, const ProcessGrid& grid) {
    const Shard own = part.role == ArrayRole::replicated
                          ? shard_of(part.file_rows, grid.all().rank(), grid.all().size())
                          : shard_of(part.rows.size(), grid.data_index(), grid.data_parts());
    return {own.begin + part.rows.begin, own.end + part.rows.begin};
}

}  // namespace

std::vector<ArrayPart<float>> parameter_parts(Params& params, bool moments) {
    std::vector<ArrayPart<float>> parts;
    const std::vector<ParamArray> arrays = params.arrays();
    const auto add = [&](const char* group, const ParamArray& array, const Matrix<float>& matrix) {
        CLT_CHECK(matrix.stride == matrix.cols);
        parts.push_back({fmt::format("{}/{}", group, array.name),
                         matrix.elements,
                         {array.first_row, array.first_row + matrix.rows},
                         array.global_rows,
                         matrix.cols,
                         array.replicated ? ArrayRole::replicated : ArrayRole::sharded});
    };
    for (const ParamArray& array : arrays) add("value", array, array.rows.value);
    if (!moments) return parts;
    for (const ParamArray& array : arrays) add("moment1", array, array.rows.moment1);
    for (const ParamArray& array : arrays) add("moment2", array, array.rows.moment2);
    return parts;
}

void CheckpointSnapshot::take(Backend& backend, const ProcessGrid& grid, Params& params,
                              Span<const Index> silence, const ModelConfig& model,
                              const CheckpointState& state) {
    shape_ = params.shape();
    model_ = model;
    state_ = state;
    arrays_.clear();
    const std::vector<ArrayPart<float>> parameters = parameter_parts(params, /*moments=*/true);
    const std::vector<ArrayPart<const Index>> counters = silence_parts(params, silence);
    const std::vector<NormalizationArray> statistics =
        normalization_arrays(state.data.normalization);
    Index bytes = 0;
    const auto place = [&](const CheckpointArray& array, Shard own) {
        arrays_.push_back({array, own, bytes});
        bytes += (own.size() * array.width * size_of(array.type) + 63) / 64 * 64;
    };
    const auto place_parts = [&]<class T>(const std::vector<ArrayPart<T>>& parts) {
        for (const ArrayPart<T>& part : parts)
            place({part.name, file_type(static_cast<const T*>(nullptr)), part.file_rows, part.width,
                   part.role},
                  rows_to_write(part, grid));
    };
    place_parts(parameters);
    place_parts(counters);
    const bool leads = grid.all().rank() == 0;
    for (const NormalizationArray& array : statistics) place(array, {0, leads ? array.rows : 0});
    if (static_cast<Index>(memory_.size()) != bytes) {
        pinned_.reset();
        memory_.resize(static_cast<std::size_t>(bytes));
        pinned_ = backend.pin(memory_.data(), memory_.size());
    }

    std::size_t next = 0;
    const auto copy = [&]<class T>(const std::vector<ArrayPart<T>>& parts) {
        using Value = std::remove_const_t<T>;
        for (const ArrayPart<T>& part : parts) {
            const SnapshotArray& array = arrays_[next++];
            const Index count = array.own.size() * array.width;
            const Index first = (array.own.begin - part.rows.begin) * array.width;
            auto* const to = reinterpret_cast<Value*>(memory_.data() + array.offset);
            backend.download(Span<const Value>(part.values.subspan(first, count)),
                             std::span<Value>(to, static_cast<std::size_t>(count)));
        }
    };
    copy(parameters);
    copy(counters);
    for (const NormalizationArray& array : statistics) {
        const SnapshotArray& to = arrays_[next++];
        if (leads)
            std::copy(array.values.begin(), array.values.end(),
                      reinterpret_cast<float*>(memory_.data() + to.offset));
    }
}

Index CheckpointSnapshot::file_bytes() const {
    // Arrays start at whole megabytes (H5File::create); small ones share blocks with the metadata.
    constexpr Index alignment = Index{1} << 20;
    constexpr Index small = Index{2} << 10;  // an object header, and what is around it
    const CheckpointTexts texts = make_texts(*this);
    Index bytes = 2 * alignment + static_cast<Index>(texts.header.size() + texts.cursor.size() +
                                                     texts.job.size() + texts.extra.size());
    for (const SnapshotArray& array : arrays_) {
        const Index blocks = blocks_of(array, block_rows_of(array));
        bytes += array.bytes() + small + blocks * static_cast<Index>(sizeof(std::uint64_t));
        if (array.bytes() >= alignment) bytes += alignment - 1;
    }
    return bytes;
}

}  // namespace clt
