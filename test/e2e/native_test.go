// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"time"

	"github.com/meshd/meshd/test/lab"
)

// underlays are what most tests run on.
var underlays = []lab.Underlay{lab.NAT, lab.Routed}

// probes are as the daemon has them.
var probes []string

// settleTime is how long something must last that may not come and go: longer
// than any round of gossip's.
const settleTime = 30 * time.Second
