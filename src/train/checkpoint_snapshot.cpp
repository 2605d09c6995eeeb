// A checkpoint's arrays into host memory.
#include "clt/train/checkpoint.hpp"
#include "train/checkpoint_parts.hpp"

namespace clt {
namespace {

// Replicas hold the same rows: each takes a part of them, so that all ranks share the work (and a
// device sends as little as can be).
template <class T>
Shard rows_to_write(const ArrayPart<T>& part, const ProcessGrid& grid) {
    const Shard own = part.everywhere
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
                         array.replicated});
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
    Index bytes = 0;
    const auto place = [&]<class T>(const std::vector<ArrayPart<T>>& parts) {
        for (const ArrayPart<T>& part : parts) {
            const auto type = file_type(static_cast<const T*>(nullptr));
            arrays_.push_back(
                {part.name, type, part.file_rows, part.width, rows_to_write(part, grid), bytes});
            const Index own_bytes = arrays_.back().own.size() * part.width * size_of(type);
            bytes += (own_bytes + 63) / 64 * 64;
        }
    };
    place(parameters);
    place(counters);
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
            backend.download(
                Span<const Value>(part.values.subspan(first, count)),
                std::span<Value>(reinterpret_cast<Value*>(memory_.data() + array.offset),
                                 static_cast<std::size_t>(count)));
        }
    };
    copy(parameters);
    copy(counters);
}

}  // namespace clt
