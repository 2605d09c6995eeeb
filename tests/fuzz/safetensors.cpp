// A safetensors file: its header, then every tensor of a type that is read.
#include "clt/io/safetensors.hpp"

#include "fuzz.hpp"

CLT_FUZZ_TARGET(bytes) {
    static const clt::fuzz::Folder folder;
    const std::string path = folder.write("model.safetensors", bytes);
    clt::fuzz::refusable([&] {
        const clt::SafetensorsFile file(path);
        for (const auto& entry : file.entries())
            clt::fuzz::refusable([&] { file.read(entry.first); });
    });
}
