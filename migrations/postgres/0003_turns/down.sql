DROP FUNCTION live_sessions_in_turn;
