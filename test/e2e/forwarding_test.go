// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// TestForwardingByLink has a host whose links don't forward, although ip_forward is 1, as
// systemd-networkd leaves it: new links take conf.default.
func TestForwardingByLink(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 2)
	a, b := m.nodes[0], m.nodes[1]
	m.run(a, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	m.run(a, "sysctl", "-qw", "net.ipv4.conf.default.forwarding=0", "net.ipv4.conf."+lab.HostLink+".forwarding=0")
	m.start(a, b)
	m.settle(settleLimit, a, b)
	near, far := m.pod(a, "near"), m.pod(b, "far")
	m.reaches(near, far)
	m.reachesOut(near, a)
	for _, link := range []string{device, "kube-bridge", lab.HostLink} {
		m.run(a, "sysctl", "-qw", "net.ipv4.conf."+link+".forwarding=0")
		m.reaches(near, far)
		m.reachesOut(near, a)
	}
}

// TestParametersReadOnly has a host whose kernel parameters can't be set, as in a
// container. It is not ready until they can.
func TestParametersReadOnly(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 2)
	a, b := m.nodes[0], m.nodes[1]
	m.run(b, "mount", "--bind", "/proc/sys", "/proc/sys")
	m.run(b, "mount", "-o", "remount,bind,ro", "/proc/sys")
	m.start(a, b)
	has := shows(netcfg.ProblemParameter, "net.ipv4.ip_forward = 1 (now 0)", "read-only file system")
	connected := func(s control.Status) bool { return lab.TunnelsUp(s) == 1 }
	s := m.await(settleLimit, "says that parameters are not set", all(has, connected), b)[0]
	if s.Node.Ready {
		t.Error("the node is ready although its host does not forward")
	}
	m.run(b, "mount", "-o", "remount,bind,rw", "/proc/sys")
	m.settle(settleLimit, a, b)
	m.await(settleLimit, "says that parameters are set", not(shows(netcfg.ProblemParameter)), b)
	m.reaches(m.pod(a, "near"), m.pod(b, "far"))
}
