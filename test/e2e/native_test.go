// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"time"

	"github.com/meshd/meshd/test/lab"
)

// underlays are those on which most tests run.
var underlays = []lab.Underlay{lab.NAT, lab.Routed}

// probes has no settings: the daemon's defaults.
var probes []string

// settleTime is how long a condition must hold to count as stable: longer than any
// round of gossip.
const settleTime = 30 * time.Second
