// faults.h - what a driver can refuse, on demand: see `Emulator.fault` and EMULATED_CUDA_FAULT.
//
// A rule is CALL:N:STATUS[:sticky], several with commas between. The N-th call (from 1, 0 for all)
// of the driver function CALL answers STATUS, a number of CUresult; CALL@KERNEL counts launches of
// one kernel, * all calls. After a sticky one every call that needs the GPU fails alike, as on a
// real card. For STATUS also: hang, crash.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace emulator {

struct Rule {
  std::string call, status;
  int at, seen;
  bool sticky;
};

struct Faults {
  std::vector<Rule> rules;
  int lost = 0;   // the status that every call has from now on
  int fired = 0;  // calls that were made to fail

  explicit Faults(const char* text) { set(text ? text : ""); }

  void set(const std::string& text) {
    rules.clear();
    lost = fired = 0;
    std::istringstream all(text);
    for (std::string one; std::getline(all, one, ',');) {
      std::istringstream words(one);
      std::string call, at, status, sticky;
      std::getline(words, call, ':');
      std::getline(words, at, ':');
      std::getline(words, status, ':');
      std::getline(words, sticky, ':');
      rules.push_back({call, status, std::atoi(at.c_str()), 0, sticky == "sticky"});
    }
  }

  // The status that this call has to answer; 0 if it may go on. `detail` is a kernel's name.
  int status_of(const std::string& call, const std::string& detail) {
    if (lost) return fired++, lost;
    for (Rule& rule : rules) {
      if (rule.call != "*" && rule.call != call && rule.call != call + "@" + detail) continue;
      if (rule.at && ++rule.seen != rule.at) continue;
      if (rule.status == "crash") std::abort();
      while (rule.status == "hang") sleep(1000);
      const int status = std::atoi(rule.status.c_str());
      if (rule.sticky) lost = status;
      return fired++, status;
    }
    return 0;
  }
};

// A text as a template argument.
template <size_t N>
struct Text {
  char text[N];
  constexpr Text(const char (&source)[N]) { std::copy_n(source, N, text); }
};

}  // namespace emulator
