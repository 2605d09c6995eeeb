#include "clt/analyse/inspect.hpp"

#include "app/command.hpp"
#include "clt/base/log.hpp"

namespace clt {
namespace {

int run(const Arguments& arguments, const Communicator& world, Workers& /*workers*/) {
    const std::string text = inspect(arguments.positional(0), arguments.has("verify"), world);
    world.together([&] {
        if (world.rank() == 0) print_answer(text);
    });
    return 0;
}

}  // namespace

Command inspect_command() {
    return {"inspect",
            "Explains a data set, a chunk, a checkpoint, a run folder or a safetensors file",
            {"PATH"},
            {{"verify", "", "Reads everything and checks it; problems end with exit code 2"}},
            "",
            run};
}

}  // namespace clt
