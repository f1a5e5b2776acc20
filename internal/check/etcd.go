// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
)

// farMembers is the round trip between servers from which timings for several places are advised: the
// four of an election, and what TCP repeats of them, no longer fit into the half second that k3s's own leave.
const farMembers = 30 * time.Millisecond

// etcd checks the timings of etcd on this server and on others.
func (c *k3sChecks) etcd(cfg config.Config, others []Member) {
	if !c.settings.RunsEtcd() {
		return
	}
	c.etcdArgs(cfg)
	var differ []string
	var farthest Member
	for _, m := range others {
		if m.Timings != cfg.K3s.Etcd {
			differ = append(differ, fmt.Sprintf("%s on %s", m.Timings, m.Node))
		}
		if m.RTT > farthest.RTT {
			farthest = m
		}
	}
	if differ != nil {
		c.add(Warning, fmt.Sprintf("k3s.etcd is %s here, and %s: servers with shorter timings disturb the others by elections", cfg.K3s.Etcd, mesh.Some(differ, shownMembers)),
			"write the same into /etc/meshd.yaml on all servers, reload meshd there, and restart k3s, one server after the other")
	}
	own := strings.Contains(c.settings.Values["etcd-arg"].Text, "election-timeout=") // somebody has chosen timings
	if farthest.RTT > farMembers && cfg.K3s.Etcd == mesh.EtcdLAN && !own {
		c.add(Warning, fmt.Sprintf("the server %s answers after %v, and k3s.etcd is lan: when a place is lost, k3s may restart on the other servers, too", farthest.Node, farthest.RTT.Round(time.Millisecond)),
			"set k3s.etcd to wan on all servers, reload meshd there, and restart k3s, one server after the other")
	}
}

// shownMembers is how many servers a finding names.
const shownMembers = 4

// etcdArgs checks that k3s is told the timings of etcd that the configuration wants.
func (c *k3sChecks) etcdArgs(cfg config.Config) {
	args := k3s.EtcdArgs(cfg.K3s.Etcd)
	v := c.settings.Values["etcd-arg"]
	if args == nil || v.Has(args...) {
		return
	}
	entry := fmt.Sprintf("etcd-arg+: [%s]", strings.Join(args, ", "))
	var advice string
	switch {
	case strings.HasSuffix(v.From, ".service"):
		advice = fmt.Sprintf("write --etcd-arg=%s into %s", strings.Join(args, " --etcd-arg="), v.From)
	case v.From != "":
		advice = fmt.Sprintf("write into %s: %s, with its other entries", v.From, entry)
	default:
		advice = fmt.Sprintf("write into %s/meshd.yaml: %s; or set k3s.write-config to true", filepath.Dir(k3s.DropIn), entry)
	}
	c.add(Warning, fmt.Sprintf("k3s.etcd is %s, but etcd-arg is %q, without %s", cfg.K3s.Etcd, v.Text, strings.Join(args, " and ")), advice)
}
