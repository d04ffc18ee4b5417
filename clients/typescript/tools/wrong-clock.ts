import { SystemClock } from '../src/core/clock.js';

/** The clocks of this machine, with errors in milliseconds. */
export class WrongClock extends SystemClock {
  /** The time by which the wall clock is ahead. */
  ahead = 0;
  /** The time that both clocks have lost; negative if they have gained some. */
  lost = 0;

  override now(): number {
    return super.now() + this.ahead - this.lost;
  }

  override uptime(): number {
    return super.uptime() - this.lost;
  }
}
