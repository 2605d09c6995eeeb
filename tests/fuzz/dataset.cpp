// metadata.json and norm_stats.json of a data set, as two parts, beside the index and the chunks of
// a golden one.
#include "clt/data/dataset.hpp"

#include "fuzz.hpp"

constexpr const char* golden =
    CLT_SOURCE_DIR "/tests/golden/datasets/float16/tiny/synthetic_train/";

CLT_FUZZ_TARGET(bytes) {
    static int argc = 0;
    static char** argv = nullptr;
    static const clt::MpiSession session(argc, argv);
    static const clt::Communicator world = clt::Communicator::world();
    static const clt::fuzz::Folder folder;
    static const bool filled = [] {
        for (const char* name : {"index.bin", "chunk_0.hdf5", "chunk_1.hdf5"})
            std::filesystem::copy_file(std::string(golden) + name, folder.path() + "/" + name);
        return true;
    }();
    static_cast<void>(filled);
    folder.write("metadata.json", clt::fuzz::next_part(bytes));
    folder.write("norm_stats.json", bytes);
    clt::fuzz::refusable([&] { clt::ActivationDataset dataset(folder.path(), world); });
}
