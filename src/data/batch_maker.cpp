#include "data/batch_maker.hpp"

#include <algorithm>
#include <cstring>

namespace clt {
namespace {

std::vector<Shard> slices_of(const ProcessGrid& grid, Index tokens) {
    std::vector<Shard> slices;
    for (int r = 0; r < grid.all().size(); ++r) slices.push_back(grid.token_slice(tokens, r));
    return slices;
}

}  // namespace

BatchMaker::BatchMaker(const ActivationDataset& dataset, const std::vector<Unit>& units,
                       const Sampler& sampler, StreamPosition start, Index batch_tokens,
                       const RowConverter& converter, const ProcessGrid& grid, WindowReader& reader,
                       const Communicator& communicator)
    : dataset_(&dataset),
      units_(&units),
      sampler_(&sampler),
      converter_(&converter),
      reader_(&reader),
      communicator_(&communicator),
      batch_tokens_(batch_tokens),
      full_slices_(slices_of(grid, batch_tokens)),
      last_slices_(slices_of(grid, (sampler.tokens() - start.offset) % batch_tokens)),
      stream_(sampler, start),
      position_(start) {
    if (!stream_.done()) order_ = stream_.epoch().rows(stream_.take().unit);
}

void BatchMaker::make(MadeBatch& batch) {
    Index n = batch_tokens_;
    if (!sampler_->endless()) n = std::min(n, sampler_->tokens() - position_.offset);
    const std::vector<Shard>& slices = n == batch_tokens_ ? full_slices_ : last_slices_;
    choose_tokens(n);

    batch.end = position_;
    batch.view.tokens = n;
    batch.view.slice = slices[static_cast<std::size_t>(communicator_->rank())];
    const auto values = static_cast<std::size_t>(batch.view.slice.size() * dataset_->layers() *
                                                 dataset_->d_model());
    CLT_CHECK(values <= batch.inputs.capacity() && values <= batch.targets.capacity());
    batch.inputs.resize(values);
    batch.targets.resize(values);
    batch.view.inputs = batch.inputs;
    batch.view.targets = batch.targets;
    if (n > 0) exchange(batch, slices);
}

/// Fills pieces_ and tokens_ with the next n tokens and moves the position behind them.
void BatchMaker::choose_tokens(Index n) {
    pieces_.clear();
    tokens_.clear();
    while (static_cast<Index>(tokens_.size()) < n) {
        const Take& take = stream_.take();
        const Index unit_rows = (*units_)[take.unit].rows;
        const Index count = std::min(n - static_cast<Index>(tokens_.size()), take.count - used_);
        for (Index i = take.begin + used_; i < take.begin + used_ + count; ++i) {
            const std::uint32_t row = order_[static_cast<std::size_t>(i)];
            tokens_.push_back({row, static_cast<std::int32_t>(
                                        shard_owner(unit_rows, row, communicator_->size()))});
        }
        used_ += count;
        pieces_.push_back({take.unit, count, used_ == take.count});
        if (used_ < take.count) break;
        stream_.advance();
        used_ = 0;
        if (!stream_.done()) order_ = stream_.epoch().rows(stream_.take().unit);
    }
    position_.offset += n;
    if (sampler_->endless()) {
        position_.epoch += position_.offset / sampler_->tokens();
        position_.offset %= sampler_->tokens();
    }
}

void BatchMaker::exchange(MadeBatch& batch, const std::vector<Shard>& slices) {
    const int me = communicator_->rank();
    const Shard slice = batch.view.slice;
    const Index row_bytes = converter_->row_bytes();
    const auto ranks = static_cast<std::size_t>(communicator_->size());

    // Slices tile the batch in rank order: token order is destination order, and what comes from
    // one source comes in token order.
    std::vector<Index> send_bytes(ranks);
    std::vector<Index> receive_bytes(ranks);
    for (std::size_t r = 0; r < ranks; ++r)
        for (Index t = slices[r].begin; t < slices[r].end; ++t) {
            const std::int32_t source = tokens_[static_cast<std::size_t>(t)].source;
            const bool moves = source != static_cast<std::int32_t>(r);
            if (moves && source == me) send_bytes[r] += row_bytes;
            if (moves && static_cast<int>(r) == me)
                receive_bytes[static_cast<std::size_t>(source)] += row_bytes;
        }
    const auto total = [](const std::vector<Index>& bytes) {
        Index sum = 0;
        for (const Index b : bytes) sum += b;
        return static_cast<std::size_t>(sum);
    };
    send_.resize(total(send_bytes));
    receive_.resize(total(receive_bytes));

    std::string trouble;
    std::byte* to = send_.data();
    Index token = 0;
    for (const Piece& piece : pieces_) {
        const std::byte* window = reader_->current();
        const Index first = shard_of((*units_)[piece.unit].rows, me, communicator_->size()).begin;
        for (const Index end = token + piece.count; token < end; ++token) {
            const Token& chosen = tokens_[static_cast<std::size_t>(token)];
            if (chosen.source != me) continue;
            const std::byte* row = window + (Index{chosen.row} - first) * row_bytes;
            if (token >= slice.begin && token < slice.end) {
                convert(batch, token, row, trouble);
            } else {
                std::memcpy(to, row, static_cast<std::size_t>(row_bytes));
                to += row_bytes;
            }
        }
        if (piece.ends_take) reader_->done();
    }
    communicator_->all_to_all(send_.data(), send_bytes, receive_.data(), receive_bytes);

    std::vector<Index> from(ranks);
    for (std::size_t r = 1; r < ranks; ++r) from[r] = from[r - 1] + receive_bytes[r - 1];
    for (Index t = slice.begin; t < slice.end; ++t) {
        const auto source = static_cast<std::size_t>(tokens_[static_cast<std::size_t>(t)].source);
        if (static_cast<int>(source) == me) continue;
        convert(batch, t, receive_.data() + from[source], trouble);
        from[source] += row_bytes;
    }
    communicator_->together([&] {
        if (!trouble.empty()) throw UserError(trouble);
    });
}

void BatchMaker::convert(MadeBatch& batch, Index token, const std::byte* row,
                         std::string& trouble) const {
    const Index at = (token - batch.view.slice.begin) * dataset_->layers() * dataset_->d_model();
    if (converter_->convert(row, batch.inputs.data() + at, batch.targets.data() + at) ||
        !trouble.empty())
        return;
    Index behind = token;
    auto piece = pieces_.begin();
    for (; behind >= piece->count; ++piece) behind -= piece->count;
    const Unit& unit = (*units_)[piece->unit];
    trouble = fmt::format("{}: row {}: {}", dataset_->chunks()[unit.chunk].path,
                          unit.begin + tokens_[static_cast<std::size_t>(token)].row,
                          converter_->describe_refused(row, dataset_->layer_ids()));
}

}  // namespace clt
