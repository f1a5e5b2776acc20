// SPDX-License-Identifier: Apache-2.0

package daemon

import "errors"

// giveWay leaves the traffic to the other host that has this identity. A stopped daemon's
// kernel would go on, and take packets away from that host. The next start knows.
func (d *daemon) giveWay() error {
	if err := errors.Join(d.promiseDuplicate(true), d.kernel.TakeDown()); err != nil {
		return err
	}
	d.log.Info("device set down, since this node's identity runs elsewhere")
	return nil
}

// promiseDuplicate writes down whether this identity was seen on another host.
func (d *daemon) promiseDuplicate(is bool) error {
	if d.disk.node.Duplicate == is {
		return nil
	}
	next := d.disk.node
	next.Duplicate = is
	return d.disk.saveNode(next)
}
