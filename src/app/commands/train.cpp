#include "clt/train/trainer.hpp"

#include "app/command.hpp"
#include "app/job_file.hpp"
#include "clt/comm/heartbeat.hpp"

namespace clt {
namespace {

void refuse_contradictions(const Arguments& arguments) {
    if (arguments.value("fork") == "")
        user_error("--fork: expected a checkpoint's file or a run's folder");
    if (arguments.has("fork") && arguments.has("resume-step"))
        user_error(
            "--resume-step names a checkpoint of the run in [job] output, --fork one of another "
            "run by its file: give only one of them");
    if (arguments.has("fresh-optimizer") && !arguments.has("fork"))
        user_error("--fresh-optimizer belongs to --fork: a run that goes on keeps its optimizer");
}

int run(const Arguments& arguments, const Communicator& world, Workers& workers) {
    auto job = read_job<TrainJob>(
        load_job_source(arguments.positional(0), arguments.values("set"), world), "train");
    Heartbeat::set_timeout(static_cast<double>(job.run.timeout_s));
    TrainOptions options;
    // Rank 0's words for all: a relative path may become another absolute one on another host.
    options.resolved_job = world.broadcast(resolved_text(tables_of(job)));
    options.resume_step = arguments.positive_integer("resume-step");
    options.resume = arguments.has("resume") || options.resume_step;
    options.fork = arguments.value("fork").value_or("");
    options.fresh_optimizer = arguments.has("fresh-optimizer");
    refuse_contradictions(arguments);
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
              "Goes on from the newest whole checkpoint in job.output; starts when there is no "
              "run yet. Refuses a job that differs from the run's, save in keys with * or +"},
             {"resume-step", "N",
              "Goes on from the checkpoint of this step; what is newer moves to "
              "checkpoints/superseded-<k>"},
             {"fork", "PATH",
              "Starts a new run in job.output from a checkpoint of another run (a file, or the "
              "newest in a folder): its parameters and optimizer, at step 0 of this job's "
              "schedule; any key but the model's shape may differ. With --resume: unless "
              "job.output holds a run already, which goes on"},
             {"fresh-optimizer", "", "--fork: the optimizer starts anew"}},
            "train",
            run};
}

}  // namespace clt
