// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package e2e

import (
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// TestCutOffForTenMinutes is one of those that only soak runs.
func TestCutOffForTenMinutes(t *testing.T) {
	const length = 10 * time.Minute
	m := settledMesh(t, lab.NAT, 3)
	before := addresses(t, m.settle(settleLimit, m.nodes...))
	lost, rest := m.nodes[2:], m.nodes[:2]

	m.must(m.lab.Partition(m.ctx, hosts(lost), hosts(rest)))
	end := time.After(length)
	m.await(length, "aware of the loss", lab.Sees(1), rest...)
	m.await(length, "aware that it is alone", lab.Sees(0), lost...)
	<-end // the length is the condition here

	m.must(m.lab.Heal(m.ctx))
	m.heals(before)
}
