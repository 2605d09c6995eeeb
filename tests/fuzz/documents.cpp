// Text and token files. The first byte chooses the name's end, and with it the reader.
#include "lm/documents.hpp"

#include "fuzz.hpp"

CLT_FUZZ_TARGET(bytes) {
    constexpr const char* names[] = {"a.txt",         "a.jsonl",    "a.npy",     "a.bin",
                                     "a.txt.gz",      "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst",
                                     "separated.txt", "wide.bin"};
    if (bytes.empty()) return;
    const std::string name = names[static_cast<unsigned char>(bytes[0]) % std::size(names)];
    static const clt::fuzz::Folder folder;
    const std::string path = folder.write(name, bytes.substr(1));
    clt::TextConfig config;
    config.files = {path};
    if (name.starts_with("separated")) config.document_separator = "\n\n";
    if (name.starts_with("wide")) config.token_type = "uint32";
    config.separator_token = 0;
    clt::fuzz::refusable([&] {
        const auto documents = clt::open_documents(path, config, 50257);
        // A compressed file of a few bytes may hold gigabytes: they are not of interest.
        for (int fragments = 0; fragments < 100 && documents->next(); ++fragments) {
        }
    });
}
