#include "data/dataset_source.hpp"

#include <deque>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "clt/base/checksum.hpp"
#include "clt/base/stopwatch.hpp"
#include "clt/io/json.hpp"
#include "data/batch_maker.hpp"

namespace clt {
namespace {

SamplerSettings sampler_settings(const DatasetSourcePlan& plan, Index order) {
    const std::uint64_t seed =
        order == 0 ? plan.seed : mix(static_cast<std::uint64_t>(order), plan.seed);
    SamplerSettings settings{.sampling = plan.sampling, .seed = seed, .take = plan.batch_tokens};
    for (const Unit& unit : plan.units) settings.sizes.push_back(unit.rows);
    return settings;
}

}  // namespace

struct DatasetSource::Shared {
    std::shared_ptr<const ActivationDataset> dataset;
    DatasetSourcePlan plan;
    RowConverter converter;
    std::unique_ptr<Sampler> sampler;
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

// What is under way from one position of the stream on.
//   request(b): reads for batch b -> io     batch b -> batches     (main, in lockstep)
//   io waits for the window that a batch frees; that batch was requested before and has its buffer,
//   so it never waits for main. A batch waits for reads that were given before it.
struct DatasetSource::Pipeline {
    Pipeline(Shared& shared, StreamPosition start, const ProcessGrid& grid, Workers& threads)
        : workers(threads),
          batch_tokens(shared.plan.batch_tokens),
          reader(*shared.dataset, shared.plan.units, shared.reading),
          maker(*shared.dataset, shared.plan.units, *shared.sampler, start, batch_tokens,
                shared.converter, grid, reader, shared.exchanging),
          takes(*shared.sampler, start),
          batches(shared.batches) {
        for (std::size_t buffer = 0; buffer < batches.size(); ++buffer) request(buffer);
    }

    /// The oldest batch requested; the one given before is requested anew into its buffer.
    const MadeBatch& next() {
        if (in_use) request(*in_use);
        const auto [buffer, made] = requested.front();
        requested.pop_front();
        in_use = buffer;
        made.get();
        return batches[buffer];
    }

    void request(std::size_t buffer) {
        // The takes of this batch, and one ahead.
        end += batch_tokens;
        while (!takes.done() && last_take_begin < end) {
            last_take_begin = takes_end;
            takes_end += takes.take().count;
            last_read = workers.io.give([this, unit = takes.take().unit] { reader.read(unit); });
            takes.advance();
        }
        requested.emplace_back(buffer, workers.batches.give([this, buffer] { make(buffer); }));
        last_batch = requested.back().second;
    }

    void make(std::size_t buffer) {
        if (failed) return;
        try {
            maker.make(batches[buffer]);
        } catch (...) {
            failed = true;
            reader.give_up();
            throw;
        }
    }

    /// Waits until everything requested has run. All ranks have requested the same.
    void drain() const {
        if (last_read.valid()) last_read.wait();
        if (last_batch.valid()) last_batch.wait();
    }

    Workers& workers;
    Index batch_tokens;
    WindowReader reader;
    BatchMaker maker;
    TakeStream takes;  // whose reads are given
    Index end = 0;     // tokens from the start position to the end of the last batch requested
    Index takes_end = 0;
    Index last_take_begin = -1;
    std::vector<MadeBatch>& batches;
    std::deque<std::pair<std::size_t, std::shared_future<void>>> requested;  // oldest first
    std::optional<std::size_t> in_use;
    std::shared_future<void> last_read, last_batch;
    bool failed = false;  // of the thread that makes batches
};

DatasetSource::DatasetSource(std::shared_ptr<const ActivationDataset> dataset,
                             DatasetSourcePlan plan, RowConverter converter,
                             const ProcessGrid& grid, Backend& backend, Workers& workers)
    : grid_(&grid), backend_(&backend), workers_(&workers) {
    auto sampler = std::make_unique<Sampler>(sampler_settings(plan, order_));
    shared_ = std::make_unique<Shared>(Shared{std::move(dataset),
                                              std::move(plan),
                                              std::move(converter),
                                              std::move(sampler),
                                              grid.all().duplicate(),
                                              grid.all().duplicate(),
                                              {},
                                              {}});
}

DatasetSource::~DatasetSource() {
    if (std::uncaught_exceptions() == 0) {
        stop();
        return;
    }
    // Tasks may still run and wait for other ranks. When all ranks have failed alike, main lets the
    // workers finish; else it aborts the job. What they use stays.
    static_cast<void>(pipeline_.release());
    static_cast<void>(shared_.release());
}

Index DatasetSource::layers() const {
    return shared_->dataset->layers();
}
Index DatasetSource::d_model() const {
    return shared_->dataset->d_model();
}
Index DatasetSource::tokens() const {
    return shared_->sampler->tokens();
}
const std::vector<float>& DatasetSource::error_scale() const {
    return shared_->converter.error_scale();
}

HostBatch DatasetSource::next() {
    if (over_) return {};
    const Stopwatch watch;
    if (pipeline_ == nullptr) {
        if (shared_->batches.empty()) shared_->make_batches(*grid_, *backend_);
        pipeline_ = std::make_unique<Pipeline>(*shared_, position_, *grid_, *workers_);
    }
    try {
        const MadeBatch& batch = pipeline_->next();
        position_ = batch.end;
        over_ = batch.view.tokens == 0;
        if (over_) {
            stop();  // frees its windows
            return {};
        }
        HostBatch view = batch.view;
        view.wait_s = watch.seconds();
        return view;
    } catch (const UserError&) {  // on every rank alike
        stop();
        throw;
    }
}

void DatasetSource::stop() {
    if (pipeline_ == nullptr) return;
    pipeline_->drain();
    pipeline_.reset();
}

std::string DatasetSource::cursor() const {
    return nlohmann::ordered_json{{"epoch", position_.epoch},
                                  {"offset", position_.offset},
                                  {"seed", shared_->plan.seed},
                                  {"order", order_},
                                  {"data", shared_->dataset->fingerprint()},
                                  {"settings", shared_->plan.settings}}
        .dump();
}

void DatasetSource::seek(const std::string& cursor) {
    const JsonObject saved = JsonObject::parse(cursor, "data cursor");
    const StreamPosition position{saved.integer("epoch", 0), saved.integer("offset", 0)};
    const auto seed = static_cast<std::uint64_t>(saved.integer("seed"));
    const std::string data = saved.text("data");
    const std::string settings = saved.text("settings");
    const std::string& path = shared_->dataset->path();
    if (data != shared_->dataset->fingerprint() && data != shared_->dataset->format_1_fingerprint())
        user_error("{}: is another data set than the run to continue was trained on", path);
    if (seed != shared_->plan.seed)
        user_error("{}: the run to continue drew its batches with job.seed = {}, this job says {}",
                   path, seed, shared_->plan.seed);
    if (settings != shared_->plan.settings)
        user_error("{}: the run to continue drew its batches with {}, this job says {}", path,
                   settings, shared_->plan.settings);
    if (position.offset > tokens())
        user_error("data cursor \"{}\": not a place in {}", cursor, path);
    stop();
    position_ = position;
    over_ = false;
    reorder(saved.integer_or("order", 0, 0));
}

void DatasetSource::reorder(Index order) {
    stop();
    order_ = order;
    shared_->sampler = std::make_unique<Sampler>(sampler_settings(shared_->plan, order));
}

}  // namespace clt
