#include "clt/train/trainer.hpp"

#include "app/command.hpp"
#include "app/job_file.hpp"

namespace clt {
namespace {

int run(const Arguments& arguments, const Communicator& world, Workers& workers) {
    auto job = read_job<TrainJob>(
        load_job_source(arguments.positional(0), arguments.values("set"), world), "train");
    TrainOptions options;
    // Rank 0's words for all: a relative path may become another absolute one on another host.
    options.resolved_job = world.broadcast(resolved_text(tables_of(job)));
    options.resume = arguments.has("resume");
    options.differences = [](const std::string& stored, const std::string& now) {
        TrainJob defaults;
        return difference(stored, now, tables_of(defaults));
    };
    const std::unique_ptr<Backend> backend =
        make_backend(job.job.backend, world, job.job.precision);
    return train(job, options, *backend, world, workers);
}

}  // namespace

Command train_command() {
    return {"train",
            "Trains a cross-layer transcoder on an activation data set",
            {"JOB.toml"},
            {set_option(),
             {"resume", "",
              "Goes on from the newest whole checkpoint in job.output; starts anew when there is "
              "none. Refuses a job that differs from the run's, save in keys with * or +"}},
            "train",
            run};
}

}  // namespace clt
