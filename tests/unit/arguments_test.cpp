// The command line's parser and its messages.
#include <gtest/gtest.h>

#include "app/arguments.hpp"
#include "app/command.hpp"
#include "clt/base/error.hpp"

namespace clt {
namespace {

Arguments parse(const std::vector<std::string>& words) {
    return Arguments(
        "plan", words,
        {{"set", "T.K=V", ""}, {"ranks", "N", ""}, {"gbps", "X", ""}, {"resume", "", ""}},
        {"JOB.toml"});
}

template <class Work>
std::string message(Work&& work) {
    try {
        work();
    } catch (const UserError& e) {
        return e.what();
    }
    return "nothing thrown";
}
std::string refusal(const std::vector<std::string>& words) {
    return message([&] { parse(words); });
}

TEST(Arguments, OptionsStandAnywhereInBothForms) {
    const Arguments a = parse(
        {"--ranks", "8", "--set", "a.b=1", "job.toml", "--set=c.d=x=y", "--resume", "--gbps=1.5"});
    EXPECT_EQ(a.positional(0), "job.toml");
    EXPECT_EQ(a.positive_integer("ranks"), 8);
    EXPECT_EQ(a.positive_number("gbps"), 1.5);
    EXPECT_EQ(a.values("set"), (std::vector<std::string>{"a.b=1", "c.d=x=y"}));
    EXPECT_TRUE(a.has("resume"));
    const Arguments none = parse({"job.toml"});
    EXPECT_FALSE(none.has("resume"));
    EXPECT_EQ(none.positive_integer("ranks"), std::nullopt);
    EXPECT_TRUE(none.values("set").empty());
}

TEST(Arguments, ATypoIsOneSentence) {
    EXPECT_EQ(refusal({"job.toml", "--resmue"}),
              "unknown option --resmue of clt plan; did you mean --resume?");
    EXPECT_EQ(refusal({"job.toml", "-x"}), "unknown option -x of clt plan");
    EXPECT_EQ(refusal({"job.toml", "--ranks"}), "option --ranks needs a value: --ranks N");
    EXPECT_EQ(refusal({"job.toml", "--resume=yes"}), "option --resume takes no value");
    EXPECT_EQ(refusal({}), "clt plan: JOB.toml is missing; see clt help plan");
    EXPECT_EQ(refusal({"a", "b"}), "clt plan: unexpected argument \"b\"; see clt help plan");
    for (const char* bad : {"0", "-1", "two", "1.5", "8x", ""})
        EXPECT_EQ(message([&] {
                      parse({"j", "--ranks", bad}).positive_integer("ranks");
                  }),
                  std::string("--ranks ") + bad + ": expected an integer from 1 to 1000000000");
    for (const char* bad : {"0", "-1", "nan", "inf", "1,5"})
        EXPECT_EQ(message([&] {
                      parse({"j", "--gbps", bad}).positive_number("gbps");
                  }),
                  std::string("--gbps ") + bad + ": expected a number above 0");
}

TEST(Commands, AreFoundByName) {
    EXPECT_EQ(find_command("train").job_kind, "train");
    EXPECT_EQ(message([] { find_command("trian"); }),
              "unknown command \"trian\"; did you mean train?");
    EXPECT_EQ(message([] { find_command("xyzzy"); }), "unknown command \"xyzzy\"; see clt help");
}

}  // namespace
}  // namespace clt
