# SPDX-License-Identifier: Apache-2.0
"""Know how MXNet differs from version to version, and reach into it.

Imports nothing by itself: a parameter server comes here while MXNet is only half imported.
"""
