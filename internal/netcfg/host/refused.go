// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RefusedStep is an error about one route, entry or peer that the kernel refuses. Most of
// these are caused by the contents of another node's record, so it is reported as a
// problem and is not a failure of this host.
type RefusedStep struct{ err error }

// Error implements error.
func (r *RefusedStep) Error() string { return r.err.Error() }

// Unwrap returns the kernel's error.
func (r *RefusedStep) Unwrap() error { return r.err }

// refusedStep wraps an error in a RefusedStep, unless the error means that the link is
// missing, which affects all steps.
func refusedStep(err error) error {
	if err == nil || gone(err) {
		return err
	}
	return &RefusedStep{err}
}

// gone reports whether an error means that a link is missing.
func gone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// SplitRefused separates the refused steps from the rest of an error returned by Apply.
func SplitRefused(err error) (refused []*RefusedStep, rest error) { return split[*RefusedStep](err) }

// SplitSysctl separates the parameters that can't be set from the rest of an error
// returned by Apply.
func SplitSysctl(err error) (refused []*SysctlError, rest error) { return split[*SysctlError](err) }

// split separates the errors of one type from the rest of a joined error. An error without
// any is returned unchanged: it may wrap several errors and have a text of its own.
func split[T error](err error) (found []T, rest error) {
	if e, ok := err.(T); ok {
		return []T{e}, nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil, err
	}
	var others []error
	for _, e := range joined.Unwrap() {
		more, other := split[T](e)
		found, others = append(found, more...), append(others, other)
	}
	if len(found) == 0 {
		return nil, err
	}
	return found, errors.Join(others...)
}
