// SPDX-License-Identifier: Apache-2.0
// Runs the tests named on the command line, or all.
#include "check.h"

int main(int count, char** names) {
  using namespace mxadamax::tests;
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {{"rules", test_rules},
               {"kernels", test_kernels},
               {"codecs", test_codecs},
               {"sums", test_sums},
               {"update", test_update}};
  int done = 0;
  for (const auto& test : tests) {
    bool named = count == 1;
    for (int k = 1; k < count; ++k) named = named || std::string(names[k]) == test.name;
    if (!named) continue;
    test.run();
    std::cout << test.name << ": passed" << std::endl;
    ++done;
  }
  // A name that no test has is no success.
  CHECK(done == (count == 1 ? 5 : count - 1), done << " of the tests that were named exist");
}
