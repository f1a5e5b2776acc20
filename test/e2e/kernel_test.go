// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import "github.com/meshd/meshd/test/lab"

// underlays leave out those on which the tests have run on this machine's kernel:
// what is different here does not look at the way to the other hosts.
var underlays = []lab.Underlay{lab.NAT}

// probes are slow: the emulated machine stops for a second now and then, and six
// hosts that watch each other at the usual pace leave nothing of it to the tests.
var probes = slowProbes
