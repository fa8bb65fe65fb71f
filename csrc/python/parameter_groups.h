// SPDX-License-Identifier: Apache-2.0
// Groups of parameters with equal multipliers, so that a step computes scalars once for each group.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mxadamax {

class ParameterGroups {
 public:
  std::size_t size() const { return groups_.size(); }
  // The position of the first parameter in a group.
  std::size_t first_of(std::size_t group) const { return groups_[group].first; }
  std::vector<double> lr_mults() const;
  std::vector<double> wd_mults() const;

  // Puts the next parameter into a group; false if there would be too many of them.
  bool add(double lr_mult, double wd_mult);

  // The group of each parameter, of which there are so many.
  const std::vector<std::uint8_t>& group_of_each(std::size_t parameters) const;

 private:
  struct Group {
    std::size_t first;
    double lr_mult, wd_mult;
  };
  std::vector<Group> groups_;
  // Of each parameter.
  std::vector<std::uint8_t> group_of_;
};

void add_parameter_groups(pybind11::module_& m);

}  // namespace mxadamax
