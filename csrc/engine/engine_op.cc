// SPDX-License-Identifier: Apache-2.0
#include "engine_op.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace mxadamax::engine {

void push(std::unique_ptr<const EngineOp> op, const Context& context,
          const std::vector<Handle>& read, const std::vector<Handle>& written, const char* name) {
  const std::int32_t device[2] = {context.device_type, context.device_id};
  // The engine owns the task from here on, also when it fails while running it.
  const EngineOp* const released = op.release();
  check(api().MXEnginePushSyncND(
      [](void* context, void* op) {
        static_cast<const EngineOp*>(op)->run(*static_cast<const RunContext*>(context));
      },
      const_cast<EngineOp*>(released), [](void* op) { delete static_cast<const EngineOp*>(op); },
      device, const_cast<Handle*>(read.data()), static_cast<int>(read.size()),
      const_cast<Handle*>(written.data()), static_cast<int>(written.size()), nullptr, 0, name));
}

namespace {

class Failure final : public EngineOp {
 public:
  Failure(std::vector<Array> arrays, std::string message)
      : arrays_(std::move(arrays)), message_(std::move(message)) {}
  void run(const RunContext&) const override { throw std::runtime_error(message_); }

 private:
  std::vector<Array> arrays_;
  std::string message_;
};

}  // namespace

void push_failure(const std::vector<Handle>& arrays, const std::string& message) {
  std::vector<Array> held;
  std::vector<Handle> read;
  std::vector<Handle> written;
  std::vector<const void*> seen;
  for (const Handle array : arrays) {
    const void* memory = memory_of(array);
    if (memory == nullptr || std::find(seen.begin(), seen.end(), memory) != seen.end()) continue;
    seen.push_back(memory);
    held.push_back(Array::share(array));
    written.push_back(held.back().get());
  }
  if (written.empty()) return;
  push(std::make_unique<const Failure>(std::move(held), message), Context{cpu_device, 0}, read,
       written, "mxadamax failure");
}

}  // namespace mxadamax::engine
