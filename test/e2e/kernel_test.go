// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import "github.com/meshd/meshd/test/lab"

// underlays has one only: the others were tested without this kernel, whose WireGuard
// does not depend on the underlay.
var underlays = []lab.Underlay{lab.NAT}

// probes are slow: the emulated machine sometimes stalls for a second, and six hosts that
// probe each other at the usual pace would take all of its time.
var probes = slowProbes
