// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

// TestMetrics reads a node's metrics and health before and after another node dies.
func TestMetrics(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	n, other := m.nodes[0], m.nodes[1]
	shows := func(path string, lines ...string) {
		t.Helper()
		m.eventually(settleLimit, func() error {
			got, err := n.Get(m.ctx, path)
			if err != nil {
				return err
			}
			for _, line := range lines {
				if !strings.Contains(got, line) {
					return fmt.Errorf("%s has no %q:\n%s", path, line, got)
				}
			}
			return nil
		})
	}
	shows("/metrics", "meshd_node_ready 1\n", `meshd_peers{state="alive"} 1`+"\n", `meshd_peers{state="absent"} 0`+"\n",
		`meshd_peer_alive{peer="`+other.Name+`"} 1`+"\n", `meshd_peer_last_handshake_timestamp_seconds{peer="`+other.Name+`"} `, "go_goroutines ", "process_open_fds ")
	shows("/healthz", " 200 OK\r\n")
	shows("/readyz", " 200 OK\r\n")
	m.must(other.Kill())
	shows("/metrics", `meshd_peers{state="alive"} 0`+"\n", `meshd_peers{state="absent"} 1`+"\n", `meshd_peer_alive{peer="`+other.Name+`"} 0`+"\n")
	shows("/readyz", " 200 OK\r\n")
}
