#include "data/sampler.hpp"

#include <numeric>
#include <utility>

#include "clt/base/error.hpp"

namespace clt {

Epoch::Epoch(const SamplerSettings& settings, Index epoch) : settings_(settings) {
    const std::vector<Index>& sizes = settings_.sizes;
    if (settings_.sampling == Sampling::in_order) {
        for (std::size_t unit = 0; unit < sizes.size(); ++unit)
            takes_.push_back({unit, 0, sizes[unit]});
        return;
    }
    // One generator runs through the shuffles of all units, then chooses units: walking it here
    // costs a few nanoseconds a row, and permutations can be made later one at a time.
    NumpyRandom random(settings_.seed + static_cast<std::uint64_t>(epoch));
    for (const Index size : sizes) {
        before_shuffle_.push_back(random);
        random.skip_shuffle(size);
    }
    if (settings_.sampling == Sampling::random_chunk) {
        draw_random_takes(random);
    } else {
        for (const std::uint32_t unit : random.permutation(static_cast<Index>(sizes.size())))
            takes_.push_back({unit, 0, sizes[unit]});
    }
}

void Epoch::draw_random_takes(NumpyRandom& random) {
    const std::vector<Index>& sizes = settings_.sizes;
    std::vector<Index> used(sizes.size(), 0);
    const auto choose_while_rows_left = [&](Index at_least) {
        std::vector<std::size_t> open;  // ascending
        for (std::size_t unit = 0; unit < sizes.size(); ++unit)
            if (sizes[unit] - used[unit] >= at_least) open.push_back(unit);
        while (!open.empty()) {
            const auto i =
                static_cast<std::ptrdiff_t>(random.choice(static_cast<Index>(open.size())));
            const std::size_t unit = open[static_cast<std::size_t>(i)];
            const Index count = std::min(settings_.take, sizes[unit] - used[unit]);
            takes_.push_back({unit, used[unit], count});
            used[unit] += count;
            if (sizes[unit] - used[unit] < at_least) open.erase(open.begin() + i);
        }
    };
    choose_while_rows_left(settings_.take);  // the reference's batches
    choose_while_rows_left(1);               // the remainders it throws away
}

std::vector<std::uint32_t> Epoch::rows(std::size_t unit) const {
    const Index size = settings_.sizes.at(unit);
    if (settings_.sampling != Sampling::in_order) {
        NumpyRandom random = before_shuffle_[unit];
        return random.permutation(size);
    }
    std::vector<std::uint32_t> rows(static_cast<std::size_t>(size));
    std::iota(rows.begin(), rows.end(), 0U);
    return rows;
}

Sampler::Sampler(SamplerSettings settings)
    : settings_(std::move(settings)),
      tokens_(std::accumulate(settings_.sizes.begin(), settings_.sizes.end(), Index{0})) {
    CLT_CHECK(tokens_ > 0 && settings_.take > 0);
}

std::shared_ptr<const Epoch> Sampler::epoch(Index number) const {
    const std::lock_guard lock(mutex_);
    for (const auto& [known, epoch] : recent_)
        if (known == number) return epoch;
    if (recent_.size() == 2) recent_.erase(recent_.begin());
    recent_.emplace_back(number, std::make_shared<const Epoch>(settings_, number));
    return recent_.back().second;
}

TakeStream::TakeStream(const Sampler& sampler, StreamPosition start)
    : sampler_(&sampler), number_(start.epoch), epoch_(sampler.epoch(start.epoch)) {
    Index skip = start.offset;
    while (next_ < epoch_->takes().size() && epoch_->takes()[next_].count <= skip)
        skip -= epoch_->takes()[next_++].count;
    settle();
    if (done()) return;
    take_.begin += skip;
    take_.count -= skip;
}

bool TakeStream::done() const {
    return next_ == epoch_->takes().size();
}

void TakeStream::advance() {
    ++next_;
    settle();
}

void TakeStream::settle() {
    if (done() && sampler_->endless()) {
        epoch_ = sampler_->epoch(++number_);
        next_ = 0;
    }
    if (!done()) take_ = epoch_->takes()[next_];
}

}  // namespace clt
