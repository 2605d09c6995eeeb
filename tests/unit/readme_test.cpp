// The README's job reference is what the program says.
#include <gtest/gtest.h>

#include "app/help.hpp"
#include "clt/io/file.hpp"

namespace clt {
namespace {

TEST(Readme, JobReferenceIsUpToDate) {
    const std::string readme = read_file(CLT_SOURCE_DIR "/README.md");
    const std::string begin = "<!-- job reference: begin -->\n";
    const std::string end = "<!-- job reference: end -->";
    const std::size_t first = readme.find(begin);
    const std::size_t last = readme.find(end);
    ASSERT_NE(first, std::string::npos) << "README.md lacks " << begin;
    ASSERT_NE(last, std::string::npos) << "README.md lacks " << end;
    const std::size_t start = first + begin.size();
    EXPECT_TRUE(readme.substr(start, last - start) == full_reference_markdown())
        << "README.md differs from clt help --markdown; run tools/update_readme CLT";
}

TEST(Help, FitsAHundredColumns) {
    std::string all = general_help();
    for (const Command& command : all_commands()) all += command_help(command);
    std::size_t start = 0;
    while (start < all.size()) {
        const std::size_t stop = all.find('\n', start);
        EXPECT_LE(stop - start, 100U) << all.substr(start, stop - start);
        start = stop + 1;
    }
}

TEST(Help, NamesEveryKeyWithItsDefault) {
    const std::string help = command_help(find_command("train"));
    for (const char* line : {"[optimizer]  Adam and AdamW", "  features ", "required", "  output* ",
                             "  backend+ ", "  precision ", "\"batchtopk\"", "(linear, cosine,"})
        EXPECT_NE(help.find(line), std::string::npos) << line;
}

}  // namespace
}  // namespace clt
