// SPDX-License-Identifier: Apache-2.0
// What MXNet's engine runs for us.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mxnet.h"

namespace mxadamax::engine {

// What the engine hands over when it runs something. Both releases of MXNet begin it so, and the
// stream of a GPU, which is mshadow's, begins with CUDA's.
struct RunContext {
  std::int32_t device_type, device_id;
  void* stream;
};

class EngineOp {
 public:
  EngineOp() = default;
  EngineOp(const EngineOp&) = delete;
  EngineOp& operator=(const EngineOp&) = delete;
  virtual ~EngineOp() = default;

  // Lets nothing but std::runtime_error out: the engine turns a std::exception into an MXNetError
  // at the next wait and ends the process on anything else.
  virtual void run(const RunContext& context) const = 0;
};

// Hands over a task, to be run once when those arrays can be read and written, and then deleted.
void push(std::unique_ptr<const EngineOp> op, const Context& context,
          const std::vector<Handle>& read, const std::vector<Handle>& written, const char* name);

// Makes the next wait on any of these arrays raise MXNetError with this message.
void push_failure(const std::vector<Handle>& arrays, const std::string& message);

}  // namespace mxadamax::engine
