// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

// probes are as the daemon has them.
var probes []string
