// SPDX-License-Identifier: Apache-2.0

package daemon

import sd "github.com/coreos/go-systemd/v22/daemon"

// feedWatchdog tells systemd that a turn has ended, whether it failed or not: systemd restarts
// a daemon whose loop hangs, see WatchdogSec= in the unit. Turns are at most resync apart,
// which is far less than that.
func (d *daemon) feedWatchdog() { d.services.Notify(sd.SdNotifyWatchdog) }
