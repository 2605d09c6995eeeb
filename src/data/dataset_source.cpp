#include "data/dataset_source.hpp"

#include <array>
#include <deque>
#include <nlohmann/json.hpp>
#include <utility>

#include "clt/base/checksum.hpp"
#include "clt/base/stopwatch.hpp"
#include "data/batch_maker.hpp"

namespace clt {
namespace {

SamplerSettings sampler_settings(const DatasetSourcePlan& plan) {
    SamplerSettings settings{
        .sampling = plan.sampling, .seed = plan.seed, .take = plan.batch_tokens};
    for (const Unit& unit : plan.units) settings.sizes.push_back(unit.rows);
    return settings;
}

}  // namespace

struct DatasetSource::Shared {
    std::shared_ptr<const ActivationDataset> dataset;
    DatasetSourcePlan plan;
    RowConverter converter;
    Sampler sampler;
    Communicator reading;  // one for each thread, so that their collectives do not mix
    Communicator exchanging;
    std::vector<MadeBatch> batches;
    std::vector<std::shared_ptr<const void>> pins;  // of the batches, so they die first

    /// At their full size, so that they never move.
    void make_batches(const ProcessGrid& grid, Backend& backend) {
        const auto part = [](Index n, Index parts) { return (n + parts - 1) / parts; };
        const auto values = static_cast<std::size_t>(
            part(part(plan.batch_tokens, grid.data_parts()), grid.feature_parts()) *
            dataset->layers() * dataset->d_model());
        batches.resize(static_cast<std::size_t>(plan.prefetch) + 1);
        for (MadeBatch& batch : batches)
            for (std::vector<float>* array : {&batch.inputs, &batch.targets}) {
                array->reserve(values);
                pins.push_back(backend.pin(array->data(), values * sizeof(float)));
            }
    }
};

// Batches go round: free_ -> the maker -> ready_ -> the caller (current_) -> free_.
struct DatasetSource::Pipeline {
    Pipeline(Shared& shared, StreamPosition start, const ProcessGrid& grid)
        : background(shared.plan.prefetch > 0),
          reader(*shared.dataset, shared.plan.units, shared.sampler, start, shared.reading,
                 background),
          maker(*shared.dataset, shared.plan.units, shared.sampler, start, shared.plan.batch_tokens,
                shared.converter, grid, reader, shared.exchanging),
          batches(shared.batches),
          thread([this] { return !free.empty(); }, [this] { return make_one(); }) {
        for (std::size_t i = 1; i < batches.size(); ++i) free.push_back(i);
        if (background) thread.start();
    }

    bool make_one() {
        std::size_t i = 0;
        thread.locked([&] {
            i = free.front();
            free.pop_front();
        });
        maker.make(batches[i]);
        thread.locked([&] { ready.push_back(i); });
        return batches[i].view.tokens > 0;
    }

    const MadeBatch& next() {
        if (!background) {
            maker.make(batches[current]);
            return batches[current];
        }
        reader.release();
        thread.locked([&] { free.push_back(current); });
        thread.wait([&] { return !ready.empty(); });
        thread.locked([&] {
            CLT_CHECK(!ready.empty());
            current = ready.front();
            ready.pop_front();
        });
        return batches[current];
    }

    /// Collective. The maker first: to finish its step it may need the reader.
    void stop(const Communicator& control) {
        if (!background) return;
        reader.release();
        thread.stop(control);
        reader.stop(control);
    }
    void abandon() {
        thread.abandon();
        reader.abandon();
    }

    bool background;
    WindowReader reader;
    BatchMaker maker;
    std::vector<MadeBatch>& batches;
    std::size_t current = 0;
    std::deque<std::size_t> free, ready;
    LockstepThread thread;
};

DatasetSource::DatasetSource(std::shared_ptr<const ActivationDataset> dataset,
                             DatasetSourcePlan plan, RowConverter converter,
                             const ProcessGrid& grid, Backend& backend)
    : grid_(&grid), backend_(&backend), control_(grid.all().duplicate()) {
    SamplerSettings settings = sampler_settings(plan);
    shared_.reset(new Shared{std::move(dataset),
                             std::move(plan),
                             std::move(converter),
                             Sampler(std::move(settings)),
                             grid.all().duplicate(),
                             grid.all().duplicate(),
                             {},
                             {}});
}

DatasetSource::~DatasetSource() {
    if (pipeline_ == nullptr) return;
    if (std::uncaught_exceptions() == 0) {
        stop();
        return;
    }
    // Other ranks may be elsewhere and the job is about to be aborted: a thread that waits for them
    // keeps what it uses.
    pipeline_->abandon();
    static_cast<void>(pipeline_.release());
    static_cast<void>(std::make_unique<std::shared_ptr<Shared>>(shared_).release());
}

Index DatasetSource::layers() const {
    return shared_->dataset->layers();
}
Index DatasetSource::d_model() const {
    return shared_->dataset->d_model();
}
Index DatasetSource::tokens() const {
    return shared_->sampler.tokens();
}
const std::vector<float>& DatasetSource::error_scale() const {
    return shared_->converter.error_scale();
}

HostBatch DatasetSource::next() {
    if (over_) return {};
    const Stopwatch watch;
    if (pipeline_ == nullptr) {
        if (shared_->batches.empty()) shared_->make_batches(*grid_, *backend_);
        pipeline_ = std::make_unique<Pipeline>(*shared_, position_, *grid_);
    }
    try {
        const MadeBatch& batch = pipeline_->next();
        position_ = batch.end;
        over_ = batch.view.tokens == 0;
        HostBatch view = batch.view;
        view.wait_s = watch.seconds();
        return view;
    } catch (const UserError&) {  // on every rank alike
        stop();
        throw;
    }
}

void DatasetSource::quiesce() {
    if (pipeline_ != nullptr) pipeline_->reader.hold(control_);
}

void DatasetSource::stop() {
    if (pipeline_ == nullptr) return;
    pipeline_->stop(control_);
    pipeline_.reset();
}

/// FNV-1a of metadata.json and the chunk sizes: tells data sets apart, wherever they lie.
std::string DatasetSource::fingerprint() const {
    const ActivationDataset& dataset = *shared_->dataset;
    std::string text = dataset.metadata();
    for (const ChunkInfo& chunk : dataset.chunks())
        text += fmt::format(" {}:{}", chunk.id, chunk.rows);
    return fingerprint_of(text);
}

std::string DatasetSource::cursor() const {
    return nlohmann::ordered_json{{"epoch", position_.epoch},
                                  {"offset", position_.offset},
                                  {"seed", shared_->plan.seed},
                                  {"data", fingerprint()},
                                  {"settings", shared_->plan.settings}}
        .dump();
}

void DatasetSource::seek(const std::string& cursor) {
    const auto saved = nlohmann::json::parse(cursor, nullptr, false);
    StreamPosition position;
    std::uint64_t seed = 0;
    std::string data;
    std::string settings;
    try {
        position = {saved.at("epoch").get<Index>(), saved.at("offset").get<Index>()};
        seed = saved.at("seed").get<std::uint64_t>();
        data = saved.at("data").get<std::string>();
        settings = saved.at("settings").get<std::string>();
    } catch (const nlohmann::json::exception&) {
        user_error("data cursor \"{}\": damaged", cursor);
    }
    const std::string& path = shared_->dataset->path();
    if (data != fingerprint())
        user_error("{}: is another data set than the run to continue was trained on", path);
    if (seed != shared_->plan.seed)
        user_error("{}: the run to continue drew its batches with job.seed = {}, this job says {}",
                   path, seed, shared_->plan.seed);
    if (settings != shared_->plan.settings)
        user_error("{}: the run to continue drew its batches with {}, this job says {}", path,
                   settings, shared_->plan.settings);
    if (position.epoch < 0 || position.offset < 0 || position.offset > tokens())
        user_error("data cursor \"{}\": not a place in {}", cursor, path);
    stop();
    position_ = position;
    over_ = false;
}

}  // namespace clt
