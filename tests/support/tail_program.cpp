// Runs export/examples/tail.hpp on files that tests/export/test_example_tail.py writes, one image
// each, and writes FILE.json beside each.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "tail.hpp"

template <typename T>
static std::vector<T> read(std::ifstream &file, std::size_t count) {
    std::vector<T> values(count);
    file.read(reinterpret_cast<char *>(values.data()),
              static_cast<std::streamsize>(count * sizeof(T)));
    if (!file) throw std::runtime_error("the file is too short");
    return values;
}

static void run(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    const auto n = read<std::int32_t>(file, 11);  // M P A C h w, net, image, bytes of metadata
    condinst::Outputs outputs;
    outputs.candidates = n[0], outputs.params = n[1], outputs.locations = n[2];
    outputs.channels = n[3], outputs.cells = {n[4], n[5]};
    const condinst::Size net = {n[6], n[7]}, image = {n[8], n[9]};
    const auto text = read<char>(file, n[10]);
    const auto boxes = read<float>(file, 4 * std::size_t(n[0]));
    const auto scores = read<float>(file, n[0]);
    const auto labels = read<std::int32_t>(file, n[0]), locations = read<std::int32_t>(file, n[0]);
    const auto params = read<float>(file, std::size_t(n[1]) * n[2]);
    const auto features = read<float>(file, std::size_t(n[3]) * n[4] * n[5]);
    outputs.candidate_boxes = boxes.data(), outputs.candidate_scores = scores.data();
    outputs.candidate_labels = labels.data(), outputs.candidate_locations = locations.data();
    outputs.params_map = params.data(), outputs.mask_features = features.data();
    const auto config = condinst::config_from_metadata({text.begin(), text.end()});

    std::ofstream json(path + ".json");
    json << condinst::json_from_instances(condinst::instances(outputs, config, net, image), image);
}

int main(int argc, char **argv) {
    try {
        for (int i = 1; i < argc; ++i) run(argv[i]);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
