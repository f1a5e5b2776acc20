// SPDX-License-Identifier: Apache-2.0

package daemon

import "errors"

// takeDown takes the device down and saves that this node stopped as a duplicate. Otherwise
// the kernel would go on after the daemon, and take packets away from the other host.
func (d *daemon) takeDown() error {
	if err := errors.Join(d.saveDuplicate(true), d.kernel.TakeDown()); err != nil {
		return err
	}
	d.log.Info("device set down, since this node's identity runs elsewhere")
	return nil
}

// saveDuplicate saves whether this identity was seen on another host.
func (d *daemon) saveDuplicate(is bool) error {
	if d.disk.node.Duplicate == is {
		return nil
	}
	next := d.disk.node
	next.Duplicate = is
	return d.disk.saveNode(next)
}
