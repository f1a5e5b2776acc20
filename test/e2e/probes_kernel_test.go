// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

// probes are slow: the emulated machine stops for a second now and then, and six
// hosts that watch each other at the usual pace leave nothing of it to the tests.
var probes = []string{"probe: {interval: 1s, misses: 5}"}
