// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// The timings for servers in several places. A member of etcd stands for election when it has not
// heard its leader for one to two election timeouts, less a heartbeat.
//
//	last heartbeat ─────────── 4.75 s ─────────────────────── 9.25 s ──── 10 s
//	               no election         somebody has stood by now    votes, first write
//
// They have to be
//
//   - longer than a failover: while packets are lost, TCP waits twice as long each time before
//     it sends again, so the leader is silent for up to twice the gap. At a round trip of 80 ms it
//     sends 2.1 s and 4.4 s after the first heartbeat that was lost, which is one interval after the
//     last that was heard. So a gap of 2 s is borne, and one of 3 s, the longest that bench allows, is at
//     the edge.
//   - short enough that etcd is writable within 10 s of the loss of its leader: then the controller
//     manager and the scheduler give up their leases (RenewDeadline in Kubernetes), and k3s restarts.
//     The election and the first write are four round trips, some of which TCP has to repeat.
//
// k3s's own are 500 ms and 5 s: up to 9.5 s until the election, which leaves half a second for that.
const (
	wanHeartbeat = 250 * time.Millisecond // etcd advises about the round trip between members
	wanElection  = 4750 * time.Millisecond
)

// RunsEtcd reports whether a server with these settings keeps the cluster's state itself, and is a
// member of etcd if there are several.
func (s Settings) RunsEtcd() bool {
	disabled := s.Values["disable-etcd"]
	return s.Values["datastore-endpoint"].Text == "" && (disabled.From == "" || disabled.Text == "false")
}

// EtcdArgs returns the entries of etcd-arg for these timings, nil for k3s's own.
func EtcdArgs(t mesh.EtcdTimings) []string {
	if t != mesh.EtcdWAN {
		return nil
	}
	return []string{
		fmt.Sprintf("heartbeat-interval=%d", wanHeartbeat.Milliseconds()),
		fmt.Sprintf("election-timeout=%d", wanElection.Milliseconds()),
	}
}
