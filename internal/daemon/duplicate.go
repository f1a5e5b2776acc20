// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
)

// giveWay takes the device down and saves that this node stopped as a duplicate. Otherwise the
// kernel would go on after the daemon, and take packets away from the other host. It returns
// ErrDuplicate, after which systemd does not start the daemon again, or another error if the
// device could not be taken down: the next start tries again.
func (d *daemon) giveWay(ctx context.Context) error {
	saveErr := errors.Join(d.saveDuplicate(true), d.links.follow(ctx, nil))
	if err := d.kernel.TakeDown(); err != nil {
		return errors.Join(fmt.Errorf("stop as a duplicate: %w: this node's identity runs on another host, too, and the device here still takes packets away from it: if the next start does not help, run: ip link delete %s", err, d.cfg.WireGuard.Interface), saveErr)
	}
	d.log.Info("device set down, since this node's identity runs elsewhere")
	return errors.Join(ErrDuplicate, saveErr)
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
