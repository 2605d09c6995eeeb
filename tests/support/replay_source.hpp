// A batch source in memory for tests of the trainer: the tokens of a few synthetic batches, in an
// order that changes from epoch to epoch. What a real source promises, without files.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "analyse/synthetic.hpp"
#include "clt/data/batch_source.hpp"

namespace clt::test {

class ReplaySource final : public BatchSource {
  public:
    static constexpr Index training_batches = 5;  // of an epoch

    /// endless: a training source; otherwise one pass over batches that training never sees.
    /// Called before each batch with its number: may raise a signal or throw.
    using Hook = std::function<void(Index)>;
    /// May spoil a batch's targets.
    using Spoil = std::function<void(Index, std::vector<float>&)>;

    ReplaySource(const Shape& shape, Index tokens, bool endless, const ProcessGrid& grid)
        : shape_(shape),
          batch_tokens_(tokens),
          endless_(endless),
          scale_(static_cast<std::size_t>(shape.layers * shape.d_model), 0.5F) {
        for (Index i = 0; i < training_batches; ++i)
            batches_.emplace_back(endless ? i : 100 + i, tokens, shape.layers, shape.d_model, grid);
    }

    Hook hook;
    Spoil spoil;

    Index layers() const override { return shape_.layers; }
    Index d_model() const override { return shape_.d_model; }
    Index tokens() const override { return training_batches * batch_tokens_; }

    HostBatch next() override {
        if (!endless_ && next_ == training_batches) return {};
        if (hook) hook(next_);
        const Index epoch = next_ / training_batches;
        const Index which = (2 * next_ + epoch + order_) % training_batches;
        HostBatch batch = batches_[static_cast<std::size_t>(which)].batch();
        if (spoil) {
            spoiled_.assign(batch.targets.begin(), batch.targets.end());
            spoil(next_, spoiled_);
            batch.targets = spoiled_;
        }
        ++next_;
        return batch;
    }
    std::string cursor() const override { return std::to_string(next_); }
    void seek(const std::string& cursor) override { next_ = std::stoll(cursor); }
    void reorder(Index order) override { order_ = order; }
    Index order() const { return order_; }
    const std::vector<float>& error_scale() const override { return scale_; }

  private:
    Shape shape_;
    Index batch_tokens_;
    bool endless_;
    std::vector<float> scale_;
    std::vector<SyntheticBatch> batches_;
    std::vector<float> spoiled_;
    Index next_ = 0;
    Index order_ = 0;
};

}  // namespace clt::test
