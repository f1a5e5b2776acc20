// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/meshd/meshd/test/lab"
)

func TestStartThroughOneSeed(t *testing.T) {
	onUnderlays(t, func(t *testing.T, u lab.Underlay) {
		m := settledMesh(t, u, 4)
		m.connected(pingLimit, m.nodes...)
		addresses(t, m.settle(settleLimit, m.nodes...))
	})
}
