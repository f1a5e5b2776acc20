// SPDX-License-Identifier: Apache-2.0

package daemon

import "time"

// goOnline lets pods and k3s start, once for each claim: the overlay address is on the
// device, and the CNI configuration is in place.
func (d *daemon) goOnline(t *turn, wait time.Duration) {
	if d.online {
		return
	}
	if wait > 0 {
		t.recheckIn(wait)
		return
	}
	if err := d.saveReady(); err != nil {
		t.note(nil, err)
		return
	}
	d.online = true
	topology := t.wanted.Topology
	d.log.Info("online: pods may start", "overlay", topology.Addresses, "pods", topology.PodCIDRs, "peers", len(topology.Peers))
}

// saveReady writes to disk that pods may run on the claimed addresses.
func (d *daemon) saveReady() error {
	if d.disk.node.Ready {
		return nil
	}
	next := d.disk.node
	next.Ready = true
	return d.disk.saveNode(next)
}
