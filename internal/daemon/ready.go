// SPDX-License-Identifier: Apache-2.0

package daemon

import "time"

// readiness is whether pods may start, as meshd status --wait waits for it.
type readiness struct{ told bool }

// ready lets pods and k3s start, once. The node can carry pods: its overlay address is on
// the device, and the CNI configuration is in place.
func (d *daemon) ready(t *turn, wait time.Duration) {
	if d.readiness.told {
		return
	}
	if wait > 0 {
		t.wakeIn(wait)
		return
	}
	if err := d.promiseReady(); err != nil {
		t.note(nil, err)
		return
	}
	d.readiness.told = true
	topology := t.wanted.Topology
	d.log.Info("online: pods may start", "overlay", topology.Addresses, "pods", topology.PodCIDRs, "peers", len(topology.Peers))
}

// promiseReady writes down that pods may run on the claimed addresses.
func (d *daemon) promiseReady() error {
	if d.disk.node.Ready {
		return nil
	}
	next := d.disk.node
	next.Ready = true
	return d.disk.saveNode(next)
}
