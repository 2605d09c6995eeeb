#include "clt/analyse/bench.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "app/command.hpp"
#include "app/job_file.hpp"
#include "clt/base/log.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

std::string option_name(const JobField& field) {
    std::string name = field.name;
    std::replace(name.begin(), name.end(), '_', '-');
    return name;
}

int run(const Arguments& arguments, const Communicator& world, Workers& /*workers*/) {
    const std::string& what = arguments.positional(0);
    if (what != "step" && what != "checkpoint")
        user_error("clt bench {}: expected clt bench step or clt bench checkpoint", what);
    BenchOptions options;
    for (const JobField& field : fields_of(options)) {
        const std::string option = option_name(field);
        if (const auto value = arguments.value(option)) set_field(field, "--" + option, *value);
    }
    if (const auto parts = arguments.positive_integer("data")) options.grid.data = *parts;
    const std::unique_ptr<Backend> backend =
        make_backend(arguments.value("backend").value_or("cpu"), world,
                     arguments.value("precision").value_or("auto"));
    const std::string result =
        what == "step"
            ? bench_step(options, *backend, world)
            : bench_checkpoint(options, arguments.value("folder").value_or("."), *backend, world);
    const std::string file = arguments.value("json").value_or("-");
    world.together([&] {
        if (world.rank() != 0) return;
        if (file == "-")
            print_answer(result + "\n");
        else
            write_file(file, result + "\n");
    });
    return 0;
}

}  // namespace

Command bench_command() {
    std::vector<OptionSpec> options;
    BenchOptions defaults;
    for (const JobField& field : fields_of(defaults))
        options.push_back({option_name(field), field.rule.choices.empty() ? "N" : "NAME",
                           fmt::format("{} (default {})", described(field),
                                       value_text(field, /*absolute=*/false))});
    options.push_back(
        {"data", "N", "Data replicas; the other ranks are feature shards (default 1)"});
    options.push_back({"folder", "FOLDER", "checkpoint: where it is written (default .)"});
    options.push_back({"threads", "N", "Threads of a rank"});
    options.push_back({"backend", "NAME", "cpu (the default) or cuda"});
    options.push_back({"precision", "NAME", "Of the encoder's product: auto (the default), ..."});
    options.push_back({"json", "FILE", "Where the result goes; - (default): standard output"});
    return {"bench",
            "Times the training step on synthetic data, by stage, next to its floor; or the "
            "writing of a checkpoint next to a plain file of its size",
            {"step|checkpoint"},
            options,
            "",
            run};
}

}  // namespace clt
